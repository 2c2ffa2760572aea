# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Mean intersection over union; see mean_iou.py."""
