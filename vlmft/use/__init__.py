"""What is done with a run once it is trained: asked questions, merged and exported with a card, pushed."""
