struct Digit {
    1: required i32 digit,
    2: required double score,  // probability, 0 to 1
}

exception Refused {
    1: required string code,  // "invalid_input", "queue_full", "deadline_exceeded", ...
    2: required string message,
}

service Digits {
    Digit read(1: required binary image) throws (1: Refused refused),
}
