"""What Quark needs beside PPO: its pool of scored texts and its reward tokens."""
