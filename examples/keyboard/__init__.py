"""A phone keyboard's next-word predictor, from text to a file on the phone.

    corpus      text            -> documents -> sentences of words
    vocabulary  words           -> ids, pairs of (context, next word)
    model       the network: context ids -> logits of the next word
    train       the network, in under a minute on two cores
    ngram       the baseline without a network: Kneser-Ney
    measure     top-1, top-3, keystrokes saved, latency: for any of them
    demo        train, fold, export, prove, compare, suggest

Nothing here is needed by octavo itself; only `model`, `train` and `demo` import torch.
"""
