"""What reward models are made of: classifiers, their labels, and scores that can be trusted."""
