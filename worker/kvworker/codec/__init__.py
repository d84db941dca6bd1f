"""From tensors to stored bytes and back."""
