# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Import the MODULE of the first argument where the packages of the others are not installed.

That they are not imported can't be asked of all: transformers itself imports accelerate where it is installed.
"""

import importlib
import sys

module, *missing = sys.argv[1:]
sys.modules.update(dict.fromkeys(missing))
importlib.import_module(module)
