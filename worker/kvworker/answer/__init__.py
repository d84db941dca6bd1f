"""The path of a request: look up, plan, load, splice, repair, report."""
