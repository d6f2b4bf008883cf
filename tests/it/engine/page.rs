//! The page of `serve` in a real browser: what it shows to whom, and what it never loads.

use std::path::Path;
use std::time::Duration;

use crate::support::browser::Browser;
use crate::support::far_engine::certificates;
use crate::support::raw::{Container, ask, until};
use crate::support::session::{Folder, Session, docker_at, task_image};

const DOWN: &str = "\u{e015}";
const TAB: &str = "\u{e004}";
const SPACE: &str = " ";

/// Contrast of every text with its background (WCAG 2.2, 1.4.3); lists those under 4.5.
const PALE: &str = "
const light = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const pale = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || !node.checkVisibility() || node.closest('script, style, .skip')) continue;
  let behind = node;
  while (behind && /rgba\\(0, 0, 0, 0\\)/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
  const [a, b] = [light(getComputedStyle(node).color), light(getComputedStyle(behind || document.body).backgroundColor)].sort((x, y) => y - x);
  const contrast = (a + 0.05) / (b + 0.05);
  if (contrast < 4.5) pale.push(`${walker.currentNode.textContent.trim().slice(0, 30)}: ${contrast.toFixed(2)}`);
}
return pale;";

/// The arguments of kfp's create request for a task of the pipeline `city-sales`.
fn task(root: &Path, name: &str) -> (String, String) {
    let output =
        format!("{}/city-sales-2026-11-23-06-04-22-567757/{name}/executor_output.json", root.display());
    let input = serde_json::json!({"outputs": {"outputFile": output}}).to_string();
    (format!("{0}:{0}:rw", root.display()), input)
}

/// Produces every kind of event in the session. Returns the task that still runs.
fn eventful(session: &Session, folder: &Folder) -> Container {
    let (image, script) = (task_image(), ask());
    let start = |name: &str, script: &str, flags: &[&str]| {
        let (bind, input) = task(&folder.0, name);
        let made = [
            &["run", "-v", &bind][..],
            flags,
            &[&image, "sh", "-c", script, "sh", "--executor_input", &input],
        ];
        // The guard may refuse the create, so the output is not checked.
        docker_at(&session.socket, &made.concat())
    };
    // `ask` takes the server from its first argument, and kfp's arguments must not be used for that.
    let asks = format!("set --; {script}");
    start("extract", &format!("{asks}; sleep 1"), &["--rm"]);
    start("transform", &format!("{asks}; sleep 1; exit 3"), &["--rm"]);
    let running = start("load", &format!("{asks}; sleep 120"), &["-d"]);
    let running = Container(String::from_utf8(running.stdout).unwrap().trim().into());
    let keys = folder.0.join("keys");
    certificates(&keys);
    let bind = format!("{}:/keys:ro", keys.display());
    let out = start("leaky", "true", &["-v", &bind]);
    assert!(!out.status.success());
    docker_at(&session.socket, &["run", "--rm", &image, "true"]);
    running
}

fn text(browser: &Browser, id: &str) -> String {
    browser.run(&format!("return document.getElementById('{id}').textContent")).as_str().unwrap().to_owned()
}

#[test]
fn the_page_shows_the_session_to_everybody_and_loads_nothing() {
    let folder = Folder::new("page");
    let session = Session::offline("", &[]);
    let running = eventful(&session, &folder);
    let browser = Browser::start();
    browser.open(session.page.as_deref().unwrap());
    until("it shows the token of the running task", Duration::from_secs(20), || {
        text(&browser, "leases").contains("access")
    });
    tells_what_happened(&browser);
    is_for_the_keyboard_and_a_reader(&browser);
    is_light_and_dark(&browser);
    fits_a_phone(&browser);
    loads_nothing(&browser);
    // If the container kept running, no later session could remove its network.
    drop(running);
    // The page shows the end of the session.
    session.end();
    until("it says so", Duration::from_secs(20), || text(&browser, "pulse") == "the session does not answer");
}

/// Tasks as bars, tokens as marks, each in words too; who has which token; what was refused, and what to do
/// about it.
fn tells_what_happened(browser: &Browser) {
    let labels = browser.run("return [...document.querySelectorAll('.run')].map((row) => row.ariaLabel)");
    let labels: Vec<&str> = labels.as_array().unwrap().iter().map(|label| label.as_str().unwrap()).collect();
    assert!(labels.len() == 3 && labels[0].starts_with("city-sales/extract, ended after "), "{labels:?}");
    assert!(
        labels[1].contains("exit code 3") && labels[2].starts_with("city-sales/load, runs"),
        "{labels:?}"
    );
    assert!(labels.iter().all(|label| label.ends_with("1 token")), "{labels:?}");
    let drawn = browser.run(
        "return ['.bar.is-ended', '.bar.is-failed', '.bar.is-live', '.mark', '.tail'].map((one) => document.querySelectorAll(one).length)",
    );
    assert_eq!(drawn, serde_json::json!([1, 1, 1, 3, 3]));
    let leases = text(browser, "leases");
    assert!(leases.contains("city-sales") && leases.contains("access"), "{leases}");
    let guard = text(browser, "guard");
    assert!(guard.contains("a private key at ") && guard.contains("key.pem"), "{guard}");
    let advice = browser.run("return document.querySelector('#guard .do').textContent");
    assert!(advice.as_str().unwrap().starts_with("leave it out "), "{advice}");
    let remedies =
        browser.run("return [...document.querySelectorAll('#refusals .do')].map((one) => one.textContent)");
    let remedies = remedies.as_array().unwrap();
    assert!(remedies.iter().any(|one| one == "attach it with --all or a [[rule]]"), "{remedies:?}");
}

fn is_for_the_keyboard_and_a_reader(browser: &Browser) {
    assert_eq!(browser.accessible("#runs"), ("listbox".into(), "Timeline".into()));
    assert_eq!(browser.accessible("#pause"), ("button".into(), "Pause".into()));
    assert_eq!(
        browser.accessible("#leases"),
        ("table".into(), "Containers with an identity, by pipeline".into())
    );
    let focused = || browser.run("return document.activeElement.id || document.activeElement.className");
    let mut reached = vec![];
    while reached.len() < 12 && reached.last().is_none_or(|last| last != "runs") {
        browser.press(TAB);
        reached.push(focused().as_str().unwrap().to_owned());
    }
    assert!(
        reached[0] == "skip" && reached.contains(&"pause".into()) && reached.last().unwrap() == "runs",
        "{reached:?}"
    );
    browser.press(DOWN);
    let detail = text(browser, "detail");
    assert!(
        detail.starts_with("city-sales/extract (") && detail.contains("access token given at"),
        "{detail}"
    );
    browser.press(DOWN);
    assert!(text(browser, "detail").contains("exit code 3"));
    // Unchanged rows keep their nodes, so the reader's position stays.
    std::thread::sleep(Duration::from_millis(2500));
    assert!(text(browser, "detail").contains("exit code 3") && focused() == "runs");
    browser.run("document.getElementById('pause').focus()");
    browser.press(SPACE);
    assert!(text(browser, "pulse").starts_with("paused at "));
    browser.press(SPACE);
    until("it goes on", Duration::from_secs(5), || text(browser, "pulse") == "live");
}

/// The pictures are for reviewers of a change.
fn is_light_and_dark(browser: &Browser) {
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join(".work/page");
    std::fs::create_dir_all(&pictures).unwrap();
    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        assert_eq!(browser.run(PALE), serde_json::json!([]), "{scheme}");
        std::fs::write(pictures.join(format!("{scheme}.png")), browser.picture()).unwrap();
    }
    let fits =
        browser.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth");
    assert_eq!(fits, true, "only tables scroll sideways");
}

/// Elements outside of a narrow page's view, or with text smaller than 12 px.
const OUT_OF_SIGHT: &str = "
const wide = document.documentElement.clientWidth, wrong = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || !node.checkVisibility() || node.closest('script, style, .skip, caption, thead')) continue;
  const range = document.createRange();
  range.selectNodeContents(walker.currentNode);
  const { left, right } = range.getBoundingClientRect();
  const size = parseFloat(getComputedStyle(node).fontSize);
  if (left < 0 || right > wide || size < 12) wrong.push(`${walker.currentNode.textContent.trim().slice(0, 30)}: ${left}-${right}, ${size} px`);
}
for (const one of [document.documentElement, ...document.querySelectorAll('.scroll')]) {
  if (one.scrollWidth > one.clientWidth) wrong.push(`${one.className || one.tagName} scrolls sideways`);
}
return wrong;";

/// At 360 px everything is in view, each cell has its column's name, and a screen reader still sees a table.
fn fits_a_phone(browser: &Browser) {
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join(".work/page");
    let shown = "return getComputedStyle(document.querySelector('#leases td'), '::before').content";
    assert_eq!(browser.run(shown), "none");
    browser.narrow(Some(360));
    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        assert_eq!(browser.run("return document.documentElement.clientWidth"), 360);
        assert_eq!(browser.run(OUT_OF_SIGHT), serde_json::json!([]), "{scheme}");
        assert_eq!(browser.run(PALE), serde_json::json!([]), "{scheme}");
        std::fs::write(pictures.join(format!("narrow-{scheme}.png")), browser.picture()).unwrap();
    }
    assert_eq!(browser.run(shown), "\"Identity\" / \"\"");
    let columns = browser.run(
        "return [...document.querySelectorAll('#leases tr:has(td) > *')].map((cell) => cell.dataset.column)",
    );
    let wanted = ["Task", "Identity", "State", "Address", "Since", "Tokens"];
    assert_eq!(columns, serde_json::json!(wanted), "the row of the one task that runs");
    for (selector, role) in [
        ("#leases", "table"),
        ("#leases tr:has(td)", "row"),
        ("#leases td", "cell"),
        ("#leases thead th", "columnheader"),
    ] {
        // The page draws its tables again while it shows a session; a new cell has no role for a moment.
        until(selector, Duration::from_secs(5), || browser.accessible(selector).0 == role);
    }
    let bars = browser.run("return [...document.querySelectorAll('.track')].map((one) => one.clientWidth)");
    assert!(bars.as_array().unwrap().iter().all(|wide| wide.as_u64().unwrap() > 250), "{bars}");
    browser.narrow(None);
}

/// Nothing is loaded from elsewhere, no other script runs, and no text becomes markup.
fn loads_nothing(browser: &Browser) {
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let loaded = browser.run(
        "return [...new Set(performance.getEntriesByType('resource').map((one) => new URL(one.name).origin).concat(location.origin))].length",
    );
    assert_eq!(loaded, 1, "one origin");
    let allowed = browser.run(
        "const allowed = []; \
         try { document.body.append(Object.assign(document.createElement('script'), { text: 'window.ran = 1' })) } catch { } \
         if (window.ran) allowed.push('a script'); \
         try { document.getElementById('head').innerHTML = '<b>markup</b>'; allowed.push('markup') } catch { } \
         return allowed",
    );
    assert_eq!(allowed, serde_json::json!([]));
    assert!(!browser.complaints().is_empty(), "the policy blocked both");
}
