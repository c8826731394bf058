"""The proof of the speed gate: pairs of a real engine, some of them slowed down, and what each rule says of them."""
