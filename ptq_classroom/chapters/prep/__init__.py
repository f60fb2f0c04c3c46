"""The self-test before chapter 01."""
