# The same verbs everywhere. Each makes the environment first; nothing else has to be installed by hand.
PY := .venv/bin/python

.PHONY: help env lock demo demo-drafter test prove check chart-check bench conformance gpu-check check-upstream
.PHONY: site sbom scan dist tools-lock

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

env: ## the locked environment alone (11 GB, cached per lock file)
	@.ci/env

lock: env ## resolve requirements.lock anew from pyproject.toml
	$$(sed 's/ .*//' .venv/.stamp)/bin/uv pip compile -q --upgrade --generate-hashes --python-version 3.11 --no-header --group dev pyproject.toml -o requirements.lock >/dev/null

demo: env ## serve the demo model in the foreground; Ctrl-C ends everything
	@exec .venv/bin/sparktier demo

demo-drafter: env ## make the demo model's drafter anew: MINUTES=3, DEVICE=cuda, QUESTIONS=gsm8k's train.jsonl
	$(PY) -m sparktier.serving.drafting.demo_drafter $(if $(MINUTES),--minutes $(MINUTES)) $(if $(DEVICE),--device $(DEVICE)) \
	  $(if $(QUESTIONS),--questions $(QUESTIONS)) $(if $(WORK),--work $(WORK))

check: env ## ruff, mypy, import rules, links, the Helm chart
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) tests/typecheck.py
	$(PY) -m pytest -q tests/house tests/helm

chart-check: check ## alerts, dashboards and scans of the chart, and its CPU trial as processes; needs Debian's prometheus
	@command -v promtool >/dev/null || { echo "chart-check needs promtool and prometheus: apt-get install prometheus" >&2; exit 2; }
	test -x out/chart-tools/bin/checkov || { python3 -m venv out/chart-tools && out/chart-tools/bin/pip install -q -r tests/helm/tools.txt; }
	PATH=$$PWD/out/chart-tools/bin:$$PATH $(PY) -m pytest -m "prove or not prove" tests/helm

test: check ## the suite (CI runs this)
	$(PY) -m pytest -m "not prove" --ignore tests/house --ignore tests/helm

prove: env ## the long proofs
	$(PY) -m pytest -m prove

bench: env ## step time of the demo model, and what speculation costs around its model passes; run it alone
	$(PY) tests/bench/step_time.py --json out/step_time.json
	$(PY) tests/bench/overhead.py --json out/overhead.json
	$(PY) tests/bench/tree_cost.py --json out/tree_cost.json

conformance: env ## official OpenAI clients, generated gRPC clients and SGLang's benchmark client against one deployment
	tests/end_to_end/conformance/make_clients
	$(PY) -m pytest -rPs -m "prove or not prove" tests/end_to_end/conformance tests/end_to_end/gateway

gpu-check: env ## kernels, exactness and speed on a GPU node: CONFIG=my.yaml PROMPTS=prompts.jsonl, or STAGE=A, B or C
	PYTHONPATH=tests $(PY) tests/bench/gpu_check.py $(if $(CONFIG),--config $(CONFIG)) $(if $(PROMPTS),--prompts $(PROMPTS)) \
	  $(if $(STAGE),--stage $(STAGE)) $(if $(SHAPE),--shape $(SHAPE)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(OUT),--out $(OUT))

TOOLS := out/tools/bin
out/tools/.complete: .ci/tools.lock
	rm -rf out/tools && python3 -m venv out/tools && $(TOOLS)/pip install -q --require-hashes -r $< && touch $@

site: out/tools/.complete ## the documents as a site in out/site, its links checked; needs no network once its tools are there
	rm -rf out/pages out/site && mkdir -p out/pages
	git ls-files -z docs LICENSE '*.md' '*.svg' '*.png' | xargs -0 cp --parents -t out/pages
	$(TOOLS)/zensical build --strict
	PYTHONPATH=tests $(TOOLS)/python -m support.documents.site_links out/site

sbom: out/tools/.complete ## what the locked environment consists of, as CycloneDX in out/sbom.json
	$(TOOLS)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible -o out/sbom.json

scan: out/tools/.complete ## secrets in tracked files, and weak spots of the workflows
	git ls-files -z ':!*.lock' ':!*.json' ':!*/vendor/*' | xargs -0 $(TOOLS)/detect-secrets-hook --exclude-lines 'def test_' \
	  --disable-plugin HexHighEntropyString --disable-plugin KeywordDetector
	$(TOOLS)/zizmor --offline --quiet .github/workflows

dist: env ## wheel and sdist in out/dist
	$(PY) -m build --no-isolation -o out/dist .

tools-lock: env ## resolve .ci/tools.lock anew from .ci/tools.in
	$$(sed 's/ .*//' .venv/.stamp)/bin/uv pip compile -q --upgrade --generate-hashes --python-version 3.11 --no-header --no-annotate .ci/tools.in -o .ci/tools.lock

check-upstream: env ## what of SGLang's internals changed in VERSION=x
	$(PY) -m sparktier.serving.engine.upstream.check $(VERSION)
