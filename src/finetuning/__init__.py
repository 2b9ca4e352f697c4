"""What a fine-tuning is made of: its settings, images, states, what it trains and what it adds to the loss."""
