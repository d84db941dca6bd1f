"""Statistics of a model's KV over local text, and the tables that calibrated codec stages are fitted with."""
