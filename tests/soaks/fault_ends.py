from faulty import Fault

ENDS: dict[str, Fault] = {}
