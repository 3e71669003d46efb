"""One measurement in this process, which the caller has just started: `python -m localprop.bench ORDER`."""

from __future__ import annotations

import json
import sys

from localprop.bench.cost import measure_memory, measure_step_ratio
from localprop.train.assemble import DataFacts
from localprop.train.config import config_from

order = json.loads(sys.argv[1])
# The caller wrote this file itself, from settings that were vetted on its command line.
config = config_from({}, order["config"], allow_imports=True)
facts = DataFacts.read(order["facts"])
if order["what"] == "step":
    print(json.dumps(measure_step_ratio(config, facts, order["seconds"])))
else:
    print(json.dumps({"bytes": measure_memory(config, facts, backprop=order["what"] == "backprop-memory")}))
