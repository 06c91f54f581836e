"""The settings of the stack on AWS, and what it costs."""
