"""What reuse costs in quality, measured on a model, and the gate that keeps answers inside an operator's budget."""
