"""Diagnosis: pure functions from evidence to verdicts and findings.

A verdict is about one hold; a finding is one thing that is wrong. Each comes with its
proof, because a false accusation is as bad as a missed leak.

:mod:`~poolwatch.diagnosis.findings` has the list of everything that is diagnosed, and
:mod:`~poolwatch.diagnosis.evidence` the records that it is made of.
"""
