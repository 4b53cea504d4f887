"""What is wrong, and how we know: pure functions over records.

A verdict is about one hold; a finding is one thing that is wrong. Each comes with its
proof, because a false accusation is as bad as a missed leak: nothing is said here that
the records do not show.

Of single holds and call sites (:mod:`~poolwatch.diagnosis.holds`), of pools
(:mod:`~poolwatch.diagnosis.pools`), and of what the server says
(:mod:`~poolwatch.diagnosis.servers`).
"""
