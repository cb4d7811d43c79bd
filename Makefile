# Each target installs what it needs into .venv first. Elsewhere: make test VENV=~/envs/pets
PYTHON ?= python3
VENV ?= .venv
MODEL ?= R
ARGS ?=
DRAWN = dataset/drawn-pets
SMALL = dataset/oxford-iiit-pet-128
DEMO = --model ResNet34_UNet_small --name demo
STATE = saved_models/demo/demo_

ifneq ($(words $(VENV)),1)
$(error VENV cannot contain a space: $(VENV))
endif
BIN = $(VENV)/bin
RUNTIME = $(VENV)/runtime-installed
DEVELOPMENT = $(VENV)/development-installed

.PHONY: help demo reproduce test test-all lint train evaluate inference

help:
	@echo "make demo                    draw 400 pets, train on them, cut them out (3 minutes after the install)"
	@echo "make test, make lint         the test suite (4 minutes at most), the linter"
	@echo "make test-all                the slow tests too"
	@echo "make reproduce MODEL=R       download and shrink Oxford-IIIT Pet, train R for hours on a CPU, score it"
	@echo "make train MODEL=R           train on Oxford-IIIT Pet; more flags in ARGS='--image_size 128 --epochs 12'"
	@echo "make evaluate MODEL=R        score it on the validation split"
	@echo "make inference MODEL=R       score it on test, write the masks"

# pip comes last, so an environment that was left half-made is completed.
$(BIN)/pip:
	$(PYTHON) -m venv $(VENV) || { echo "no virtual environment: is python3-venv installed?"; exit 1; }

$(RUNTIME): requirements.txt | $(BIN)/pip
	@echo "installing into $(VENV); on Linux, PyTorch brings 6 GB"
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

$(DEVELOPMENT): requirements-dev.txt requirements.txt | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@ $(RUNTIME)

demo: $(RUNTIME)
	$(BIN)/python tools/draw_pets.py $(DRAWN) --count 400 --seed 0
	test -f $(STATE)epoch_final.pth || $(BIN)/python src/train.py $(DEMO) --data_path $(DRAWN) --image_size 128 \
		--epochs 60 $$(test ! -f $(STATE)last.pth || echo --resume)
	$(BIN)/python src/inference.py $(DEMO)
	@echo
	@echo "The masks are in outputs_imgs/demo; open outputs_imgs/demo/contact_sheet.png first."
	@echo "For the real data (downloads 0.8 GB; wants a GPU): $(BIN)/python src/train.py --model R"

test: $(DEVELOPMENT)
	$(BIN)/python -m pytest

test-all: $(DEVELOPMENT)
	$(BIN)/python -m pytest -m ""

lint: $(DEVELOPMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(SMALL):
	$(BIN)/python src/oxford_pet.py --download
	$(BIN)/python tools/shrink_data.py dataset/oxford-iiit-pet $(SMALL) --size 128

reproduce: $(DEVELOPMENT) | $(SMALL)
	$(BIN)/python benchmarks/study.py --queue benchmarks/queue.txt --only cpu-$(MODEL)

train evaluate inference: $(RUNTIME)
	$(BIN)/python src/$@.py --model $(MODEL) $(ARGS)
