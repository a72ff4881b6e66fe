"""Pure mathematics on tensors: what a snapshot's features tell of the input and of the label, and how to rank."""
