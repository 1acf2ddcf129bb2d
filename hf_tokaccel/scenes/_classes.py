"""What a pixel can show: class names, their usual colours, and codes of textures and walls."""

CLASS_NAMES = (
    "floor",
    "ceiling",
    "wall",
    "door",
    "window",
    "picture",
    "rug",
    "table",
    "chair",
    "sofa",
    "cabinet",
    "shelf",
    "box",
    "ball",
    "pole",
    "lamp",
    "cup",
    "plant",
    "bin",
)
NUM_STUFF = 7  # The first classes are room surfaces and panels on them: they have no instances.
FLOOR, CEILING, WALL, DOOR, WINDOW, PICTURE, RUG = range(NUM_STUFF)
PLAIN, CHECKER, STRIPES, PLANKS, NOISE = range(5)
LEFT, RIGHT, FRONT = range(3)

BASE_COLOURS = {
    "floor": (0.60, 0.48, 0.36),
    "ceiling": (0.90, 0.90, 0.88),
    "wall": (0.78, 0.76, 0.70),
    "door": (0.55, 0.38, 0.24),
    "window": (0.65, 0.80, 0.98),
    "picture": (0.50, 0.50, 0.50),
    "rug": (0.60, 0.25, 0.25),
    "table": (0.62, 0.44, 0.28),
    "chair": (0.45, 0.36, 0.30),
    "sofa": (0.35, 0.42, 0.58),
    "cabinet": (0.70, 0.62, 0.52),
    "shelf": (0.75, 0.70, 0.62),
    "box": (0.72, 0.56, 0.36),
    "ball": (0.80, 0.35, 0.25),
    "pole": (0.55, 0.57, 0.60),
    "lamp": (0.95, 0.88, 0.65),
    "cup": (0.85, 0.85, 0.90),
    "plant": (0.22, 0.50, 0.20),
    "bin": (0.35, 0.38, 0.40),
}
# How far a drawn colour may lie from its class colour: pictures and balls come in any colour, plants are green.
COLOUR_SPREAD = {"ceiling": 0.15, "window": 0.15, "plant": 0.2, "lamp": 0.2, "picture": 0.9, "ball": 0.8, "cup": 0.7}

MATERIALS = ("any", "typical")
# Toy rooms where a colour says much about the class, so that a small model learns to tell the classes apart quickly.
TYPICAL_COLOURS = {
    "floor": (0.62, 0.48, 0.34),
    "ceiling": (0.92, 0.92, 0.90),
    "wall": (0.80, 0.78, 0.66),
    "door": (0.42, 0.20, 0.10),
    "window": (0.65, 0.80, 0.98),
    "picture": (0.30, 0.10, 0.60),
    "rug": (0.70, 0.12, 0.20),
    "table": (0.90, 0.52, 0.15),
    "chair": (0.10, 0.10, 0.14),
    "sofa": (0.15, 0.30, 0.80),
    "cabinet": (0.10, 0.55, 0.55),
    "shelf": (0.95, 0.55, 0.75),
    "box": (0.80, 0.72, 0.10),
    "ball": (0.98, 0.30, 0.10),
    "pole": (0.45, 0.50, 0.55),
    "lamp": (0.98, 0.92, 0.55),
    "cup": (0.85, 0.10, 0.70),
    "plant": (0.12, 0.55, 0.12),
    "bin": (0.10, 0.18, 0.40),
}
TYPICAL_SPREAD = 0.25
TYPICAL_SHADE = 0.72
