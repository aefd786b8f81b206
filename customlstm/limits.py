"""How large a cell may be: for so much the compiled library has room. ``csrc/types.h`` has the same."""

MAX_GATES = 8
MAX_STATES = 4  # besides h
MAX_PARAMETERS = 8  # with one value a hidden unit
MAX_SAVED = 16  # values of a unit that forward keeps for backward
