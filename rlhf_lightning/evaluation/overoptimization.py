"""Reward against the distance from the start: where optimising a proxy stops paying.

The distance is d = sqrt(KL), KL in nats a reply between the policy in training and the reference. Under reinforcement
learning the gold reward is found to follow R(d) = R0 + d (a - b log d) (Gao, Schulman and Hilton 2022,
arXiv 2210.10760).
