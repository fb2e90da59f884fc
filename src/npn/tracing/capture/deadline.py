"""A bound on the time of one trace, so that attaching a model ends, with a message, whatever its code does."""

from time import monotonic, process_time

from npn.errors import TraceError


class Deadline:
    """The end of the time for one trace.

    Args:
        seconds: of CPU time from now.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end, self._latest = process_time() + seconds, monotonic() + seconds

    def check(self, done: str, op: str, line: str) -> None:
        """Raise once the time is over.

        Args:
            done: how much of what has been done.
            op: the last op.
            line: of the user's code that calls it.

        Raises:
            TraceError: the time is over.
        """
        if monotonic() > self._latest and process_time() > self._end:  # the second is a system call
            raise TraceError(
                f"tracing was not over after {self.seconds:g} s: {done}, the last one is {op} at {line}; expected a "
                "graph that can be followed in this time: give shorter example_inputs if a loop there runs over them, "
                "or trace only a part of the model: npn.attach(model.backbone, ...)"
            )
