from faulty import Fault

HOOKS: dict[str, Fault] = {}
