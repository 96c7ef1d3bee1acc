"""What the watchdog is made of: signs of life, who gave them when, and what follows from it."""
