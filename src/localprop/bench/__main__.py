"""One measurement in this process, which the caller has just started: `python -m localprop.bench ORDER`."""

from __future__ import annotations

import json
import sys

import torch

from localprop.bench import subjects
from localprop.bench.cost import protocol
from localprop.bench.measure import measure_memory, time_row, time_steps
from localprop.train.assemble import DataFacts
from localprop.train.config import config_from

torch.set_flush_denormal(True)  # as in training by the command line, for backprop too
order = json.loads(sys.argv[1])
# The caller wrote these files itself, from settings that were vetted on its command line.
configs = [config_from({}, file, allow_imports=True) for file in order["configs"]]
facts = DataFacts.read(order["facts"])
if configs[0].threads is not None:
    torch.set_num_threads(configs[0].threads)
if order["what"] == "step":
    own = [subjects.method(config, facts) for config in configs]
    own += [subjects.baseline(name, configs[0], facts) for name in order["baselines"]]
    protocols = [protocol(config) for config in configs] + [protocol(configs[0])] * len(order["baselines"])
    backprop = {protocol(config): subjects.baseline("bp", config, facts) for config in configs}
    timings = time_steps([*own, *backprop.values()], seconds=order["seconds"], rounds=tuple(order["rounds"]))
    beside = dict(zip(backprop, timings[len(own) :], strict=True))
    print(json.dumps([time_row(timing, beside[key]) for timing, key in zip(timings, protocols, strict=False)]))
else:
    what = order["subject"]
    subject = subjects.method(configs[0], facts) if what == "method" else subjects.baseline(what, configs[0], facts)
    print(json.dumps(measure_memory(subject)))
