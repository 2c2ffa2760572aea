# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Run predict_raster.py with the arguments after the first two, killed in the middle of the CALL-th call of FUNCTION.

FUNCTION is one of numpy and rasterio that writes: "savez_compressed", or "write" of a part of the GeoTIFF.
"""

import os
import signal
import sys

import numpy as np
import predict_raster
import rasterio.io

from van_hf import raster_inference

raster_inference.MAX_HELD_BYTES = 2**16  # for several strips
name, last_call, *arguments = sys.argv[1:]
owner = np if name == "savez_compressed" else rasterio.io.DatasetWriter
function = getattr(owner, name)
calls = 0


def killed(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(last_call):
        if owner is np:
            with open(args[0], "wb") as half_written:
                half_written.write(b"PK\3\4")
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)


setattr(owner, name, killed)
sys.exit(predict_raster.main(arguments))
