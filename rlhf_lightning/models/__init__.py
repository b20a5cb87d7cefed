"""Language models and the heads on them: loading, actor-critic, frozen reference, sequence classifiers."""
