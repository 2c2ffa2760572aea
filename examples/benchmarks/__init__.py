# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What `benchmark.py` measures, a module for each of its sub-commands; `measuring` is what they share."""
