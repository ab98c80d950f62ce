"""The settings of each job, their checks, and the command line that reads them.

Does not know what the settings are used for. Imports `core` only.
"""
