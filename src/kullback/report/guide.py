"""How to read a report: every term in it, in words for a reader who meets it for the first time.

Which to use: `TERMS`, pairs of a term and its explanation, in reading order, as plain text.
"""

__all__ = ["TERMS"]

TERMS = (
    (
        "Surprise",
        "A model gives every possible image x a probability p(x). The surprise of seeing x is "
        "log 1/p(x): nothing for what was certain, more the less likely it was. Independent "
        "surprises add. With natural logarithms the unit is the nat; 1 nat is 1.443 bits. A good "
        "model is little surprised by images it has never seen, so log p(x) should be high.",
    ),
    (
        "Code, encoder, decoder",
        "This model explains each x by a short list of numbers z, its code. A code is drawn from "
        "the prior p(z), and the decoder turns it into a probability p(x|z) for every image. The "
        "encoder goes the other way: q(z|x) says which codes could explain x.",
    ),
    (
        "A bound",
        "log p(x) adds up over every possible code, which nobody can do exactly. What can be "
        "computed is a figure that lies below it in expectation: a lower bound, a floor. A higher "
        "floor is better, and the truth is no lower.",
    ),
    (
        "ELBO",
        "The evidence lower bound: E[log p(x|z)] − KL(q(z|x) ‖ p(z)). It falls short of log p(x) "
        "by exactly KL(q(z|x) ‖ p(z|x)), the error of the encoder.",
    ),
    (
        "Rate and distortion",
        "The two halves of −ELBO. To describe x you first name a code, which costs the rate; then "
        "you correct what the decoder expected, which costs the distortion. A rate near 0 means "
        "that the code is ignored (posterior collapse).",
    ),
    (
        "L_K",
        "Draw K codes from q(z|x), weight each by p(x, z)/q(z|x), average the weights and take the "
        "logarithm. With K = 1 that is the ELBO in expectation. The logarithm is concave, so "
        "averaging before it can only raise the expectation: ELBO ≤ L_K ≤ log p(x), and L_K rises "
        "towards log p(x) as K grows. L_K − ELBO is thus a floor under the encoder's error.",
    ),
    (
        "Effective draws",
        "When one of the K weights outweighs all others, L_K rests on a single draw and is loose. "
        "(Σw)²/Σw² counts how many draws truly take part: K when all are equal, 1 when one "
        "dominates. Few effective draws make L_K too low, never too high in expectation.",
    ),
    (
        "Active units",
        "A latent dimension is active when the mean of q(z|x) differs from one x to another "
        "(variance above 0.01, Burda et al. 2016) and its KL is 0.1 nats or more. The first alone "
        "is met by a dimension that says 0.005 nats; the KL bounds what one can say about x.",
    ),
    (
        "Bits per dimension",
        "For data that are levels: −L_K in bits, divided by the number of values in an x. It is "
        "the length of a code made from this model. Only figures on the same data, prepared the "
        "same way, compare; figures on binarised data compare with none on 8-bit data, those on "
        "8 bits with none on 12. A density has no such figure: it depends on the units.",
    ),
    (
        "±",
        "One standard error over the test examples: how much the average would move with other "
        "examples of the same kind. The same examples were used for all figures here, so the "
        "difference of two of them is surer than their error bars suggest: see the gap's own.",
    ),
)
