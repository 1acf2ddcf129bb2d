"""Short class names of the data sets that the original Segmenter was trained on, by the name that it gives them."""

_ADE20K = """
wall, building, sky, floor, tree, ceiling, road, bed, window, grass, cabinet, sidewalk, person, earth, door, table,
mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair, seat,
fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter,
sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, display case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
stove, palm tree, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck,
tower, chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel, pole, land, bannister,
escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyor belt, canopy, washer, toy,
swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, brand name,
microwave, pot, animal, bicycle, lake, dishwasher, projection screen, blanket, sculpture, exhaust hood, sconce, vase,
traffic light, tray, trash can, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock,
flag
"""

_CITYSCAPES = """
road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car,
truck, bus, train, motorcycle, bicycle
"""

_PASCAL_CONTEXT = """
background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, table, dog, horse, motorbike, person,
potted plant, sheep, sofa, train, tv monitor, bag, bed, bench, book, building, cabinet, ceiling, cloth, computer, cup,
door, fence, floor, flower, food, grass, ground, keyboard, light, mountain, mouse, curtain, platform, sign, plate,
road, rock, shelves, sidewalk, sky, snow, bedclothes, track, tree, truck, wall, water, window, wood
"""

CLASS_NAMES = {
    name: [label.strip() for label in text.replace("\n", " ").split(",")]
    for name, text in (("ade20k", _ADE20K), ("cityscapes", _CITYSCAPES), ("pascal_context", _PASCAL_CONTEXT))
}
