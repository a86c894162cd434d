"""Reasoning about a trust domain as it was observed. Pure: no I/O, no clock.

observation   who trusts, issues and presents what
safety        the invariant; who would break if
phase         which phase a rotation is in, and how far
gates         which phase may be entered, on what evidence
steps, planner, plan   the ordered steps, what is already true, the digest that approvals are bound to
model, procedure, explore   every interleaving of that order with what may happen meanwhile
"""
