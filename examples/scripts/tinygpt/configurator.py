"""Poor man's configurator.

    $ python train.py config/train_stdlib.py --batch_size=32

The code of this file is exec'd by train.py, so it overrides the globals of train.py: first by the config file, then by each --key=value.
"""

import sys
from ast import literal_eval
from pathlib import Path

for arg in sys.argv[1:]:
    if "=" not in arg:
        # assume it's the name of a config file
        assert not arg.startswith("--"), f"{arg}: settings are given as --key=value"
        print(f"Overriding config with {arg}")
        exec(Path(arg).read_text())
    else:
        # assume it's a --key=value argument
        assert arg.startswith("--"), f"{arg}: settings are given as --key=value"
        key, val = arg[2:].split("=", 1)
        if key not in globals():
            raise ValueError(f"Unknown config key: {key}")
        try:
            attempt = literal_eval(val)
        except (SyntaxError, ValueError):
            attempt = val  # a string
        if isinstance(globals()[key], float) and isinstance(attempt, int):
            attempt = float(attempt)
        assert type(attempt) is type(globals()[key]), f"{key} is a {type(globals()[key]).__name__}, got {val}"
        print(f"Overriding: {key} = {attempt}")
        globals()[key] = attempt
