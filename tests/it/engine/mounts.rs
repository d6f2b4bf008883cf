//! Mounts of the config and of `--mount` in containers.

use crate::support::session::{Folder, Kfp, Session, task_image};

#[test]
fn a_path_of_this_machine_is_mounted_read_only_in_place() {
    let folder = Folder::new("mount");
    std::fs::create_dir(folder.0.join("images")).unwrap();
    std::fs::write(folder.0.join("images/one.txt"), "picture").unwrap();
    std::fs::write(folder.0.join("single.txt"), "file").unwrap();
    let single = format!("{}:/single.txt", folder.0.join("single.txt").display());
    let config = format!(
        "[[mount]]\nimage = \"kfp-creds-task*\"\nsource = \"{0}\"\ntarget = \"/data\"\n\
         [[mount]]\nimage = \"other\"\nsource = \"{0}\"\ntarget = \"/host\"\n\
         [[mount]]\ntmpfs = true\ntarget = \"/scratch\"\n",
        folder.0.join("images").display()
    );
    let session = Session::offline(&config, &["--config", "kfp-creds.toml", "--all", "--mount", &single]);
    let script = "cat /data/one.txt /single.txt; touch /data/two 2>/dev/null || echo ' read-only'; \
                  touch /scratch/x && echo scratch; ls -d /host 2>/dev/null";
    let out = session.docker(&["run", "--rm", &task_image(), "sh", "-c", script]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(text, "picturefile read-only\nscratch\n", "{}", session.said());
    assert!(folder.0.join("images/one.txt").exists() && !folder.0.join("images/two").exists());
    let clash = session.docker(&["run", "--rm", "-v", "/tmp:/data", &task_image(), "true"]);
    let why = String::from_utf8_lossy(&clash.stderr).into_owned();
    assert!(
        !clash.status.success() && why.contains("/data, where the container has a mount already"),
        "{why}"
    );
}

#[test]
fn a_named_volume_keeps_what_a_writable_mount_writes() {
    let volume = format!("kfpct-mount-{}", std::process::id());
    let config = format!("[[mount]]\nsource = \"{volume}\"\ntarget = \"/keep\"\nwritable = true\n");
    crate::support::session::raw(&["volume", "create", &volume]);
    let session = Session::offline(&config, &["--config", "kfp-creds.toml", "--all"]);
    let image = task_image();
    session.ok(&["run", "--rm", &image, "sh", "-c", "echo kept >/keep/file"]);
    assert_eq!(session.ok(&["run", "--rm", &image, "cat", "/keep/file"]), "kept");
    drop(session);
    crate::support::session::raw(&["volume", "rm", &volume]);
}

/// The oldest kfp takes no arguments for its runner, the newest some; the containers of both get the mount.
#[test]
fn components_of_the_oldest_and_newest_kfp_get_the_mount() {
    let folder = Folder::new("mounted");
    std::fs::write(folder.0.join("data.txt"), "from the host").unwrap();
    for kfp in [Kfp::oldest(), Kfp::newest()] {
        let mount = format!("{}:/mnt/data", folder.0.display());
        let ran = kfp.pipeline("", &["--mount", &mount], "mounted", &[]);
        assert_eq!(ran.report()["read"], "from the host", "{}", ran.stderr);
    }
}
