# make demo       imagine with the released checkpoint, evaluate it, and train both models for a minute each
# make test       ruff and the fast tests
# make test-slow  interrupted runs, several processes, whole analyses, the paper's size
# make train      train a model like assets/push-tiny.pt and replace it (seven hours on two cores, not yet run on a
#                 GPU; a run continues)
# make train-pusht  likewise assets/pusht-tiny.pt
# make analyses   the protocol and the paper's analyses on PushWorld, with their pictures (four hours)
# make mbpo       ten runs with and ten without imagination on PushWorld, and their curves (a night)
# make post-train  reinforcement learning of the released model's predictions on PushWorld (half an hour)
# make torture    random commands, damaged and hostile files, kills: what breaks? (half an hour)
# make plan       random actions, world model and simulator plan 50 tasks of PushWorld, three seeds (an hour)
PYTHON ?= python3
RUN = .venv/bin/python
# On CPUs that have bf16 it is faster: make train TRAIN_GPT="--dtype bf16". On a GPU: make train PROCESSES=1 BATCH=8
PROCESSES ?= 2
BATCH ?= 4
TRAIN_GPT ?=
TRAIN = .venv/bin/torchrun --nproc_per_node=$(PROCESSES)

.PHONY: demo test test-slow train train-pusht analyses mbpo post-train torture plan clean

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --requirement requirements.txt
	touch $@

.venv/ready-test: .venv/ready requirements-optional.txt
	.venv/bin/pip install --quiet --requirement requirements-optional.txt
	touch $@

SHORT = --batch_size 4 --warmup 10 --max_minutes 1

demo: .venv/ready
	@rm -rf out/demo && start=$$(date +%s) && set -ex && \
	$(RUN) sample.py --out out/demo && \
	$(RUN) evaluate.py --episodes 256 --out out/demo/metrics.json && \
	$(RUN) prepare.py push --out out/demo/push --episodes 200 && \
	$(RUN) train_tokenizer.py --preset tiny --data out/demo/push --out out/demo/tokenizer.pt $(SHORT) --max_steps 200 && \
	$(RUN) train_gpt.py --preset tiny --data out/demo/push --tokenizer out/demo/tokenizer.pt --out out/demo/gpt.pt \
	    $(SHORT) --max_steps 100 && \
	$(RUN) -c "import json, sys; path, s = sys.argv[1:]; m = json.load(open(path)); m['seconds'] = int(s); \
	    json.dump(m, open(path, 'w'), indent=1)" out/demo/metrics.json $$(( $$(date +%s) - start )) && \
	ls -l out/demo

test: .venv/ready-test
	.venv/bin/ruff check .
	$(RUN) -m pytest -q -n 2 --dist loadfile -m "not slow and not gpu" tests

test-slow: .venv/ready-test
	$(RUN) -m pytest -q -m "slow and not gpu" tests

data/push-18000/meta.json: | .venv/ready
	$(RUN) prepare.py push --out data/push-18000 --episodes 18000

# Two processes of one thread are faster than one of two threads. An interrupted run continues.
out/push/tokenizer.done: | .venv/ready-test data/push-18000/meta.json
	$(TRAIN) train_tokenizer.py --preset tiny --batch_size $(BATCH) --data data/push-18000 \
	    --out out/push/tokenizer.pt $$(test -e out/push/tokenizer.pt && echo --resume true)
	touch $@

out/push/tokens.pt: out/push/tokenizer.done
	$(RUN) prepare.py tokens --data push --segments 60000 --tokenizer out/push/tokenizer.pt \
	    --out $@ --overwrite true

out/push/gpt.done: out/push/tokens.pt
	$(TRAIN) train_gpt.py --preset tiny --batch_size $(BATCH) --data data/push-18000 \
	    --tokenizer out/push/tokenizer.pt --tokens out/push/tokens.pt --segment_length 32 \
	    --out out/push/gpt.pt $(TRAIN_GPT) \
	    $$(test -e out/push/gpt.pt && echo --resume true)
	touch $@

train: out/push/gpt.done
	$(RUN) sample.py --ckpt out/push/gpt.pt --data push --export assets/push-tiny.pt --overwrite true
	$(RUN) evaluate.py --episodes 256 --out results/push-tiny.json --overwrite true
	$(RUN) -m experiments.dreams --out results/dreams.json --overwrite true
	$(RUN) -m experiments.curves --logs out/push/gpt.jsonl --metric val_ce --out results/push-tiny.png \
	    --overwrite true

# PushT, whose transformer learns far sooner from codes that draw their cells alone (--cell_loss).
data/pusht/meta.json: | .venv/ready-test
	$(RUN) prepare.py pusht

out/pusht/tokenizer.done: | data/pusht/meta.json
	$(TRAIN) train_tokenizer.py --preset tiny --batch_size $(BATCH) --data data/pusht --dynamics_grid 8 \
	    --dynamics_codes 512 --disguise false --cell_loss 60 \
	    --out out/pusht/tokenizer.pt $$(test -e out/pusht/tokenizer.pt && echo --resume true)
	touch $@

out/pusht/tokens.pt: out/pusht/tokenizer.done
	$(RUN) prepare.py tokens --data data/pusht --segments 14000 --segment_length 12 \
	    --tokenizer out/pusht/tokenizer.pt --out $@ --overwrite true

out/pusht/gpt.done: out/pusht/tokens.pt
	$(TRAIN) train_gpt.py --preset tiny --batch_size $(BATCH) --data data/pusht --corrupt 0 \
	    --tokenizer out/pusht/tokenizer.pt --tokens out/pusht/tokens.pt --segment_length 12 \
	    --out out/pusht/gpt.pt $(TRAIN_GPT) \
	    $$(test -e out/pusht/gpt.pt && echo --resume true)
	touch $@

train-pusht: out/pusht/gpt.done
	$(RUN) sample.py --ckpt out/pusht/gpt.pt --data pusht --export assets/pusht-tiny.pt --overwrite true

data/push-cyan/meta.json: | .venv/ready
	$(RUN) prepare.py push --robot cyan --seed 1 --out data/push-cyan --episodes 1100

analyses: .venv/ready-test data/push-18000/meta.json data/push-cyan/meta.json
	$(RUN) evaluate.py --samples 20 --repeats 3 --batch_size 80 --temperature 1 --out results/push-prediction.json \
	    --overwrite true
	set -e; for name in decouple tokenizers transfer adapt scaling goal; do \
	    case $$name in tokenizers|scaling|goal) data="--data data/push-18000";; *) data=;; esac; \
	    $(RUN) -m experiments.$$name $$data --out results/$$name.json --overwrite true; \
	    mv results/$$name.png assets/$$name.png; done

# As many runs at a time as there are cores; an interrupted run continues and a finished one is left alone.
mbpo: .venv/ready-test
	$(RUN) -m experiments.mbpo_seeds
	$(RUN) -m experiments.mbpo_report --runs out/mbpo --out results/mbpo-push --overwrite true

data/push/meta.json: | .venv/ready
	$(RUN) prepare.py push

# Half an hour on two cores; an interrupted run continues.
post-train: .venv/ready data/push/meta.json
	$(TRAIN) post_train.py --batch_size $(BATCH) $$(test -e out/post-train.pt && echo --resume true)

torture: .venv/ready-test
	OMP_NUM_THREADS=1 $(RUN) -m experiments.torture --overwrite true

plan: .venv/ready
	$(RUN) plan.py
	cp out/plan/push.json results/plan-push.json

clean:
	rm -rf .venv out/demo out/samples
