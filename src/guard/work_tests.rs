//! A test of the work that content costs.

use super::content::steps;
use super::tests::{pem, private};

/// Work is linear in the length, whatever the content: steps are counted, not timed.
#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn the_work_of_a_scan_is_linear() {
    /// The length of the longest file that is judged at once, and a shorter one for the other texts:
    /// nonlinear work shows there too.
    const LENGTHS: [usize; 2] = [1 << 20, 96 << 10];
    /// Most steps for each byte: the passes, and what the levels of decoding add.
    const MOST: u64 = 150;
    let dashes = "-----";
    let key = pem(&private(), "MIIEvQIBADANBg", "\n");
    let header = format!("{dashes}BEGIN {}{dashes}\n", private());
    let encoded = |text: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(text)
    };
    let mut parts: Vec<String> = [
        "eyJ0eXBl",
        "ewogICJ0",
        "eyAidHlwZS",
        "LS0tLS1CRUdJTi",
        "type:",
        "type=",
        "d=",
        "token=",
        "name=value=",
        "sig=se=sv=",
        "refresh_token=",
        "client_secret=client_id=tenant=",
        "secret_key=a",
        "AWS_SECRET_ACCESS_KEY=",
        "AWS_SECRET_KEY",
        "AccountKey=",
        "SharedAccessKey=",
        "auths:auth=",
        "current-context:token=",
        "machine x login ",
        "password ",
        "AKIA",
        "ASIAGOOG",
        "AKIAQQQQQQQQQQQQQQQQ ",
        "1//0",
        "1//0ab ",
        "ya29.",
        "ya29. ",
        "--client-secret ",
        "--",
        "--token--",
        "PRIVATE KEY",
        "%22",
        "%",
        "&quot;",
        "&#34;",
        "=3D",
        "=\n",
        "\\u0022",
        "\\/",
        "\\",
        "\"",
        "a",
        "A\n",
        "AAAAAAAA\n",
        "AAAAAAAAAAAAAAAA\n    ",
        "0",
        "0a",
        "=",
        ":",
        "a:b",
        "{",
        "}",
        "a}=",
        "\u{0}",
        "a\u{0}",
        "\u{0}a",
        "\n",
        " ",
        "\\n",
        "\\\\n",
        "\"\\\n",
        "eyJh.eyJh.",
        "PuTTY-User-Key-File-",
        "Private-Lines:",
        "Proc-Type: DEK-Info: ",
        "</",
        "</name>",
        "<name>secret_key</name><value>x</value>",
        "key ",
        "H4sIAAAA",
        "%2525",
    ]
    .map(String::from)
    .into();
    parts.extend([
        header.clone(),
        format!("{header}Proc-Type: 4,ENCRYPTED\n"),
        header.replace('\n', "\\n"),
        encoded(&header.repeat(3)),
        encoded("{\"a\": 1, \"type\": \"x\", \"client_secret\": \"y\"}") + "\n",
        encoded(&encoded(&encoded(&"type: 1, ".repeat(30)))),
        key[..60].to_string(),
    ]);
    let mut worst = (0, String::new());
    for (number, part) in parts.into_iter().enumerate() {
        let mut text = part.repeat(LENGTHS[usize::from(number >= 5)] / part.len());
        for _ in 0..2 {
            let (found, steps) = steps(text.as_bytes());
            assert_eq!(found, None, "{part:?}");
            let each = steps / text.len() as u64;
            if each > worst.0 {
                worst = (each, part.clone());
            }
            assert!(each <= MOST, "{part:?}: {each} steps for each byte");
            // Once more with the text in base64.
            text = encoded(&text);
        }
    }
    assert!(worst.0 > 5, "nothing was counted: {worst:?}");
}
