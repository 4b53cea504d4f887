from faulty import Fault

FORKS: dict[str, Fault] = {}
