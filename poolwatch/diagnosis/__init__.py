"""Diagnosis: pure functions from evidence to verdicts and findings.

A verdict is about one hold; a finding is one thing that is wrong. Each comes with its
proof, because a false positive is as bad as a missed leak.

:mod:`~poolwatch.diagnosis.findings` lists all diagnoses;
:mod:`~poolwatch.diagnosis.evidence` has the records that they are made from.
"""
