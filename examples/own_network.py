"""Uses a PyTorch network of your own: a hook reads the input of the last layer. Needs torch."""

import torch

import dice


class Features:
    """Runs `model` and returns the input of its last layer `head`, float32 (N, D)."""

    def __init__(self, model, head):
        self.model, self._seen = model.eval(), None
        head.register_forward_pre_hook(lambda _, inputs: setattr(self, "_seen", inputs[0].detach()))

    @torch.no_grad()
    def __call__(self, images):
        self.model(images)
        return self._seen


def main():
    torch.manual_seed(0)
    # Any network will do. torchvision's ResNets have their last layer in `model.fc`.
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 10),
    )
    head = model[-1]
    features = Features(model, head)
    train, held_out, test = (torch.rand(n, 3, 32, 32) for n in (200, 100, 50))

    detector = dice.DICE(head.weight.detach(), head.bias.detach(), p=50)
    for batch in train.split(64):
        detector.partial_fit(features(batch))
    detector.set_threshold(tpr=0.9, scores=detector.score_samples(features(held_out)))
    verdicts = detector.predict(features(test))
    print(f"{(verdicts > 0).sum()} of {len(test)} new images of the same kind are accepted")

    plain = dice.DICE(head.weight.detach(), head.bias.detach(), p=None).score_samples(features(test))
    energy = torch.logsumexp(model(test), dim=1).detach()
    print(
        "without a mask the scores are the energies: "
        f"largest difference {abs(plain - energy.numpy()).max():.1e}"
    )


if __name__ == "__main__":
    main()
