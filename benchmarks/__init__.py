"""How fast is a step? Other libraries, and the machine itself, beside ours: `python -m benchmarks.step_time`."""
