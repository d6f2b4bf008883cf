// Java's google-auth-library as Debian has it: JavaGoogle STEP...

import com.google.auth.oauth2.ComputeEngineCredentials;
import com.google.auth.oauth2.GoogleCredentials;
import com.google.auth.oauth2.IdTokenCredentials;
import java.net.URI;
import java.util.List;
import java.util.Map;

final class JavaGoogle {
    private static final URI OBJECT =
        URI.create("https://storage.googleapis.com/storage/v1/b/bucket/o/object?alt=media");
    private static GoogleCredentials kept;

    private static GoogleCredentials credentials() throws Exception {
        if (kept == null) {
            kept = GoogleCredentials.getApplicationDefault()
                .createScoped(List.of("https://www.googleapis.com/auth/cloud-platform"));
        }
        return kept;
    }

    /** As before each call: what is there, if the library takes it for good. */
    private static String token() throws Exception {
        Map<String, List<String>> headers = credentials().getRequestMetadata(OBJECT);
        return headers.get("Authorization").get(0).substring("Bearer ".length());
    }

    private static Object step(String name) throws Exception {
        switch (name) {
            case "detect":
                return credentials() instanceof ComputeEngineCredentials;
            case "email":
                return ((ComputeEngineCredentials) credentials()).getAccount();
            case "token":
            case "use":
            case "again":
                return token();
            case "refresh":
                credentials().refresh();
                return token();
            case "identity":
                IdTokenCredentials made = IdTokenCredentials.newBuilder()
                    .setIdTokenProvider((ComputeEngineCredentials) credentials())
                    .setTargetAudience(System.getenv("AUDIENCE"))
                    .build();
                made.refresh();
                return made.getAccessToken().getTokenValue();
            default:
                throw new IllegalArgumentException(name);
        }
    }

    private static String quoted(String text) {
        return '"' + text.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", " ").replace("\t", " ") + '"';
    }

    public static void main(String[] steps) throws Exception {
        for (String step : steps) {
            String[] parts = step.split("@");
            if (parts.length > 1) {
                Thread.sleep((long) (1000 * Double.parseDouble(parts[1])));
            }
            String said;
            try {
                Object value = step(parts[0]);
                said = "\"value\": " + (value instanceof String ? quoted((String) value) : value);
            } catch (Exception error) {
                error.printStackTrace();
                said = "\"error\": " + quoted(error.toString());
            }
            System.out.println("{\"step\": " + quoted(step) + ", " + said + "}");
            System.in.read();
        }
        System.exit(0);
    }
}
