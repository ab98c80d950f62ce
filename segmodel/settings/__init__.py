"""The settings of each job, their checks, and the command line that reads them.

Knows nothing of what the settings are used for; imports only segmodel.core.
"""
