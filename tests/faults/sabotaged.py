"""`python -m tests.faults.sabotaged NAME COMMAND …`: the service, broken as sabotage NAME does."""

import runpy
import sys

from tests.faults.sabotage import SABOTAGES

_, name, *command = sys.argv
[sabotage] = (each for each in SABOTAGES if each.name == name)
for replacement in sabotage.replacements():
    replacement.apply()
sys.argv = ["service", *command]
runpy.run_module("service", run_name="__main__")
