"""Pictures of trainings and runs for people.

Computes nothing that a table does not already hold; imports packages below it (runs, ...) only.
"""
