"""Jobs: kinds made of durable steps, what a web page or a command may ask of them, and the worker that runs them.

What a step needs is imported from here; a step may run twice, so every effect of it is idempotent by ``job_id``.
"""

from alignment.jobs.parts import Command, Finish, JobKind, Skip, Step, StepContext, Wait

__all__ = ["Command", "Finish", "JobKind", "Skip", "Step", "StepContext", "Wait"]
