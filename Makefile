.DEFAULT_GOAL := help
.PHONY: help install style quality test test-slow test-ends bench paper-gflops results semantic-tokens

help:  ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install:  ## Install the package with everything for development
	pip install -e ".[dev]"

style:  ## Format the code and fix what can be fixed
	ruff format . && ruff check --fix .

quality:  ## Check format and lint
	ruff format --check . && ruff check .

test:  ## Run the default tests
	python -m pytest

test-slow:  ## Run the tests that take minutes or need a large model
	python -m pytest -m slow

test-ends:  ## Run the default tests with the lowest and with the newest releases of what the package needs
	.ci/ends

native-controls:  ## Record what Transformers' own tests do natively with the installed versions
	python tests/upstream/record.py

bench:  ## Measure the method: clustering and reconstruction against one ViT-L layer
	python -m benchmarks.method

paper-gflops:  ## Recompute the published GFLOPs beside what our models cost
	python -m benchmarks.paper_gflops all --markdown docs/paper_gflops.md

results:  ## Redo the committed results of the evaluations, and README's tables and pictures with them
	accelerate launch examples/evaluate_depth.py --output docs/evaluate_depth
	accelerate launch examples/evaluate_segmentation.py --output docs/evaluate_segmentation
	accelerate launch examples/evaluate_panoptic.py --output docs/evaluate_panoptic
	hf_tokaccel plot docs/evaluate_depth/result.json docs/evaluate_segmentation/result.json docs/evaluate_panoptic/result.json
	python -m benchmarks.readme

semantic-tokens:  ## Redo the experiments of semantic tokens (an hour), and the tables of their page
	python -m benchmarks.semantic_tokens
	python -m benchmarks.semantic_training
	python -m benchmarks.semantic_dense
	python -m benchmarks.readme
