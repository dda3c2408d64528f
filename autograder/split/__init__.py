"""What the learner process is made of. This folder alone of the instructor's package is visible in there.

- :mod:`autograder.split.values`: what may cross between the two processes, and how it is written.
- :mod:`autograder.split.peer`: calls across the pipe, stand-ins, gradients.
- :mod:`autograder.split.isolation`: namespaces and limits of one learner process.
- :mod:`autograder.split.zygote`: a warm process that forks another for every notebook.
- :mod:`autograder.split.learner`: runs the cells of a notebook and answers the examiner.
"""
