# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""All that travels to the Hub with the weights: `save_pretrained` copies these files, and they import nothing else."""
