# make demo · make test · make lab · make app: each sets up what it needs; a second call starts in seconds.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# Jupyter refuses the administrator, who is the only user in many containers, unless told.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

demo: $(READY)
	$(BIN)/vosnb demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=notebooks --MappingKernelManager.root_dir="$(CURDIR)" $(AS_ROOT)

app: $(READY)
	$(BIN)/vosnb app

# torch first: sam2 is an sdist that looks at the installed torch while it builds.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d; call: make PYTHON=python3.11" % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip "setuptools>=77" wheel
	$(BIN)/python -m pip install -q torch torchvision
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install -q --no-build-isolation sam2
	$(BIN)/python -m pip install -q --no-build-isolation -e '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv runs build *.egg-info

.PHONY: demo test lab app clean
