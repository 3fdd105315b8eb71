import org.springframework.jdbc.core.JdbcTemplate;
import org.springframework.jdbc.datasource.DataSourceTransactionManager;
import org.springframework.jdbc.datasource.DriverManagerDataSource;
import org.springframework.transaction.support.TransactionTemplate;

/** CallSpring KEY AMOUNT: calls PaySpring as others are called. */
public class CallSpring {
    public static void main(String[] args) throws Exception {
        var source = new DriverManagerDataSource(System.getenv("JDBC_URL"));
        var payments = new PaySpring(new JdbcTemplate(source),
            new TransactionTemplate(new DataSourceTransactionManager(source)));
        var answer = payments.pay(args[0], Integer.parseInt(args[1]));
        System.out.println(answer.outcome() + " " + (answer.response() == null ? "" : answer.response()));
    }
}
