.DEFAULT_GOAL := help
.PHONY: help install style quality test test-slow bench results

help:  ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

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

bench:  ## Measure the method: clustering and reconstruction against one ViT-L layer
	python -m benchmarks.method

results:  ## Redo the committed results of the main job, and README's table and picture with them
	accelerate launch examples/evaluate_depth.py --output docs/evaluate_depth
	python -m benchmarks.readme
